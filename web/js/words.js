// Words as chips and sliders: Prompt Pair, Reweight and Attention Maps. The text stays the value.
import { app } from '../../../scripts/app.js'
import { addDrawing, make, origin, outputOf, pictureAddress, setValue, valueOf } from './drawing.js'

const WORD = /[\p{L}\p{M}\p{N}]+(?:['’][\p{L}\p{M}]+)*|[^\s\p{L}\p{M}\p{N}]/gu
const PROMPTS = ['source_prompt', 'target_prompt']

const plain = (words) => words.join('').toLowerCase()

// The words of a prompt, without ComfyUI's weights: of "a (red:1.2) car" three.
function wordsOf(prompt) {
  return prompt.replace(/:-?[\d.]+(?=\))/g, '').replace(/\\?[()]/g, ' ').match(WORD) ?? []
}

// Which words became which, as [old words, new words] in order: the longest run of equal words in
// common, and between them what takes the other's place.
function difference(old, fresh) {
  const longest = lengths(old, fresh)
  const found = []
  let [i, j, before, behind] = [0, 0, [], []]
  const between = () => {
    if (before.length === behind.length) found.push(...before.map((word, k) => [[word], [behind[k]]]))
    else found.push([before, behind])
    before = []
    behind = []
  }
  while (i < old.length || j < fresh.length) {
    if (i < old.length && j < fresh.length && plain([old[i]]) === plain([fresh[j]])) {
      between()
      found.push([[old[i++]], [fresh[j++]]])
    } else if (j === fresh.length || (i < old.length && longest[i + 1][j] >= longest[i][j + 1])) {
      before.push(old[i++])
    } else {
      behind.push(fresh[j++])
    }
  }
  between()
  return found.filter((words) => words.flat().length)
}

// How many words old[i:] and fresh[j:] have in common, in order.
function lengths(old, fresh) {
  const table = [...old, null].map(() => Array(fresh.length + 1).fill(0))
  for (let i = old.length - 1; i >= 0; i--) {
    for (let j = fresh.length - 1; j >= 0; j--) {
      const equal = plain([old[i]]) === plain([fresh[j]])
      table[i][j] = equal ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1])
    }
  }
  return table
}

// A prompt as it is typed: on the node itself, or on the String node that it is wired to.
function promptOf(node, name) {
  const from = origin(node, name)
  return from?.type.startsWith('Primitive') ? from.widgets?.[0]?.value : valueOf(node, name)
}

// Which words became which on a Prompt Pair: as it found when it ran, or as the typed texts say.
function changes(node) {
  const typed = PROMPTS.map((name) => promptOf(node, name))
  const told = outputOf(node).report?.[0].words
  const isTold = (text, k) =>
    text === undefined ||
    /\{.*\}/s.test(text) || // chosen anew at each run
    plain(wordsOf(text)) === plain(told.flatMap((words) => words[k]))
  if (told && typed.every(isTold)) return told
  return difference(...typed.map((text) => wordsOf(text ?? '')))
}

function chip(words, kind) {
  return make('span', `dp-chip dp-${kind}`, {}, words.join(' '))
}

const isSame = ([old, fresh]) => plain(old) === plain(fresh)

// An old word above the new one that it became, with a line between them.
function column([old, fresh]) {
  const same = isSame([old, fresh])
  const title = same ? '' : `${old.join(' ') || 'new'} → ${fresh.join(' ') || 'gone'}`
  const line = make('span', old.length && fresh.length ? 'dp-line' : 'dp-gap')
  return make(
    'div',
    'dp-column',
    { title },
    old.length ? chip(old, same ? 'same' : 'old') : '',
    line,
    fresh.length ? chip(fresh, same ? 'same' : 'new') : ''
  )
}

// The words of the target, each once, that a node's Prompt Pair has.
function targetWords(node) {
  const pair = origin(node, 'prompts')
  if (pair?.type !== 'DiffusionPath_PromptPair') return []
  const words = changes(pair).flatMap(([, fresh]) => fresh.map((word) => word.toLowerCase()))
  return [...new Set(words)].filter((word) => /[\p{L}\p{N}]/u.test(word))
}

// The lines of Reweight's text as [word, factor, line].
function factorLines(text) {
  return text
    .split('\n')
    .filter((line) => line.trim())
    .map((line) => {
      const [, word, factor] = /^(.*):(.*)$/.exec(line) ?? ['', line, '']
      return [word.trim().toLowerCase(), parseFloat(factor), line]
    })
}

const factorOf = (text, word) => factorLines(text).find(([one]) => one === word)?.[1] ?? 1

// Writes a word's factor into Reweight's text, on its own line; for a single word 1 is no line.
function setFactor(node, word, factor) {
  const lines = factorLines(valueOf(node, 'words'))
  const others = lines.filter(([one]) => one !== word).map(([, , line]) => line)
  const place = lines.findIndex(([one]) => one === word)
  if (factor !== 1 || /\s/.test(word)) others.splice(place < 0 ? others.length : place, 0, `${word}: ${factor}`)
  setValue(node, 'words', others.join('\n'))
}

// A word, its slider and its factor. A click on the word doubles it, another takes that back.
function sliderRow(node, word, factor) {
  const number = make('output', 'dp-number', {}, String(factor))
  const slider = make('input', 'dp-slider', { type: 'range', min: -2, max: 5, step: 0.1, value: factor })
  slider.setAttribute('aria-label', word)
  slider.addEventListener('input', () => {
    number.textContent = slider.valueAsNumber
    setFactor(node, word, slider.valueAsNumber)
  })
  slider.addEventListener('change', () => slider.blur())
  const name = make('button', `dp-chip ${factor === 1 ? '' : 'dp-new'}`, { textContent: word, title: word })
  name.addEventListener('click', () => setFactor(node, word, factor === 1 ? 2 : 1))
  return [name, slider, number]
}

// A slider for each phrase that the text has, and for each word of the prompt.
function sliders(node) {
  const text = valueOf(node, 'words')
  if (text === undefined) return []
  const words = targetWords(node)
  const phrases = factorLines(text).filter(([word, factor]) => !words.includes(word) && !isNaN(factor))
  return [...phrases, ...words.map((word) => [word, factorOf(text, word)])].map((row) => row.slice(0, 2))
}

// The words that Attention Maps has looked at, and its pictures: all words of one, then the next.
function maps(node) {
  const { report, images = [] } = outputOf(node)
  return { words: report?.[0].words ?? [], images }
}

// Shows a word's maps large, one for each picture, with all words to go on to.
function showLarge(words, images, shown) {
  const dialog = make('dialog', 'dp-large')
  const show = (word) => {
    const maps = images.filter((_, i) => words[i % words.length] === word)
    const pictures = maps.map((image) => make('img', '', { src: pictureAddress(image), alt: word }))
    dialog.replaceChildren(make('div', 'dp-maps', {}, ...pictures), ...wordButtons(words, show, word))
  }
  dialog.addEventListener('click', (event) => event.target.closest('button') || dialog.close())
  dialog.addEventListener('keydown', (event) => event.stopPropagation()) // not the front end's shortcuts
  dialog.addEventListener('close', () => dialog.remove())
  document.body.append(dialog)
  show(shown)
  dialog.showModal()
}

function wordButtons(words, click, shown) {
  return words.map((word) => {
    const button = make('button', `dp-chip ${word === shown ? 'dp-new' : ''}`, { textContent: word })
    button.addEventListener('click', () => click(word))
    return button
  })
}

const DRAWINGS = {
  DiffusionPath_PromptPair: [
    'pair',
    'which words change',
    changes,
    (node, found) => (found.every(isSame) ? [] : found.map(column))
  ],
  DiffusionPath_Reweight: [
    'sliders',
    'more or less of each word',
    sliders,
    (node, rows) => rows.flatMap((row) => sliderRow(node, ...row))
  ],
  DiffusionPath_AttentionMaps: [
    'maps',
    'the map of a word, large',
    maps,
    (node, { words, images }) => wordButtons(words, (word) => showLarge(words, images, word))
  ]
}

const STYLE = `
.dp-pair { max-height: 140px }
.dp-pair .dp-content { gap: 6px 4px }
.dp-column { display: grid; grid-template-rows: 18px 8px 18px; justify-items: center }
.dp-column > :first-child:not(.dp-gap) { grid-row: 1 }
.dp-line, .dp-gap { grid-row: 2 }
.dp-line { width: 1px; background: currentColor; opacity: 0.5 }
.dp-line + *, .dp-gap + * { grid-row: 3 }
.dp-same { opacity: 0.7 }
.dp-old { background: #8a3b2a; border-color: #c0583f; color: #fff }
.dp-new { background: #2b6b3f; border-color: #43a262; color: #fff }
.dp-sliders { max-height: 116px }
.dp-sliders .dp-content { display: grid; grid-template-columns: fit-content(45%) 1fr 28px; align-items: center }
.dp-sliders .dp-chip { overflow: hidden; text-overflow: ellipsis }
.dp-slider { width: 100%; min-width: 40px; height: 14px; margin: 0 }
.dp-number { text-align: right }
.dp-maps { max-height: 80px }
.dp-large { margin: auto; padding: 12px; max-width: 96vw; border-radius: 8px; font-size: 14px; line-height: 22px;
  color: var(--input-text); background: var(--comfy-menu-bg); border: 1px solid var(--border-color) }
.dp-large .dp-maps { display: flex; gap: 8px; max-height: none; overflow: auto; margin-bottom: 8px }
.dp-large img { width: min(84vw, 76vh); object-fit: contain }
.dp-large button { margin: 0 4px 4px 0 }
`

app.registerExtension({
  name: 'DiffusionPath.Words',
  setup() {
    document.head.append(make('style', '', { textContent: STYLE }))
  },
  nodeCreated(node) {
    const drawing = DRAWINGS[node.comfyClass]
    if (drawing) addDrawing(node, ...drawing)
  }
})
