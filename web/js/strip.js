// The path as a strip: its frames, and below them the part of it that each edit works in.
import { app } from '../../../scripts/app.js'
import { addDrawing, make, origin, outputOf, pictureAddress, setValue, valueOf } from './drawing.js'

// The inputs where an edit's window begins and ends; null is the path's own end.
const WINDOWS = {
  DiffusionPath_PromptToPrompt: [
    ['cross_start', 'cross_replace', 'layout'],
    ['self_start', 'self_replace', 'shapes']
  ],
  DiffusionPath_Concept: [['warm_up', 'end']],
  DiffusionPath_LocalBlend: [['start', null]]
}
const USUAL = [['start', 'end']]
const STEP = 0.01

const hasInput = (node, name) => node.inputs?.some((input) => input.name === name)
const rounded = (fraction) => Math.round(fraction / STEP) * STEP

// The edits whose chain ends at a node, the first one first.
function chainOf(node) {
  const edits = []
  for (let edit = origin(node, 'edits'); edit; edit = origin(edit, 'edits')) edits.unshift(edit)
  return edits
}

// The node whose edits a path is shown with: the one that made it, or the first that uses it.
function walkerOf(node) {
  const maker = origin(node, 'path')
  if (!maker || hasInput(maker, 'edits')) return maker
  const links = maker.outputs.flatMap((output) => output.links ?? []).map((id) => node.graph.getLink(id))
  const users = links.map((link) => link && node.graph.getNodeById(link.target_id))
  return users.find((user) => user && hasInput(user, 'path') && hasInput(user, 'edits'))
}

// Where on the model's schedule a node's path begins: 0 is noise.
function beginning(maker) {
  return valueOf(maker, 'start') ?? 1 - (valueOf(maker, 'strength') ?? 1)
}

function barsOf(edit) {
  const windows = WINDOWS[edit.comfyClass] ?? USUAL
  return windows.map(([start, end, what]) => bar(edit, start, end, what)).filter(Boolean)
}

// An edit's window. An end can be moved if the edit's own input has it; FlowEdit's start of -1 is
// left to its settings, and drawn as the path's beginning.
function bar(edit, start, end, what) {
  const [from, to] = [valueOf(edit, start), end ? valueOf(edit, end) : 1]
  if (from === undefined && to === undefined) return null
  const title = edit.title.replace(/ \(.*\)$/, '') // the paper's name would not fit
  const name = what ? `${title}: ${what}` : title
  return { id: edit.id, name, start, end, from: Math.max(from ?? 0, 0), to: to ?? 1 }
}

function read(node) {
  const maker = origin(node, 'path')
  const walker = walkerOf(node)
  const { images = [] } = outputOf(node)
  const bars = walker ? chainOf(walker).flatMap(barsOf) : []
  return { images, bars, first: maker ? beginning(maker) : 0 }
}

const percent = (fraction) => `${100 * fraction}%`

function frames(images, first) {
  const pictures = images.map((image) => make('img', '', { src: pictureAddress(image), draggable: false }))
  const row = make('div', 'dp-frames', {}, ...pictures)
  row.style.marginLeft = percent(first)
  return row
}

function barRow(node, { id, name, start, end, from, to }) {
  const span = make('div', 'dp-bar')
  span.style.left = percent(from)
  span.style.width = percent(Math.max(to - from, 0))
  const edit = node.graph.getNodeById(id)
  for (const [input, side] of [[start, 'from'], [end, 'to']]) {
    if (input && valueOf(edit, input) !== undefined) span.append(handle(edit, input, side, { from, to }))
  }
  const label = make('span', 'dp-name', {}, `${name} ${from.toFixed(2)}–${to.toFixed(2)}`)
  return make('div', 'dp-row', {}, span, label)
}

function handle(edit, input, side, window) {
  const grip = make('div', `dp-grip dp-${side}`, { title: `${input}: drag to change` })
  grip.addEventListener('pointerdown', (event) => drag(event, edit, input, side, window))
  return grip
}

// Follows the pointer with an end of a bar until it is let go. The strip is drawn anew meanwhile,
// so its outer element, which stays, does the listening.
function drag(event, edit, input, side, { from, to }) {
  const strip = event.target.closest('.dp-drawing')
  const { left, width } = event.target.closest('.dp-row').getBoundingClientRect()
  const [lowest, highest] = side === 'from' ? [0, to - STEP] : [from + STEP, 1]
  const move = ({ clientX }) => {
    const fraction = Math.min(Math.max((clientX - left) / width, lowest), highest)
    setValue(edit, input, Number(rounded(fraction).toFixed(2)))
  }
  strip.setPointerCapture(event.pointerId)
  strip.addEventListener('pointermove', move)
  const stop = () => strip.removeEventListener('pointermove', move)
  strip.addEventListener('lostpointercapture', stop, { once: true })
}

function draw(node, { images, bars, first }) {
  if (!images.length && !bars.length) return []
  const ends = make('div', 'dp-ends', {}, make('span', '', {}, 'noise'), make('span', '', {}, 'picture'))
  return [...(images.length ? [frames(images, first)] : []), ends, ...bars.map((one) => barRow(node, one))]
}

const STYLE = `
.dp-strip { user-select: none; touch-action: none; max-height: 320px }
.dp-strip .dp-content { display: block }
.dp-frames { display: flex }
.dp-frames img { flex: 1; min-width: 0; pointer-events: none }
.dp-ends { display: flex; justify-content: space-between; opacity: 0.7 }
.dp-row { position: relative; height: 18px; margin-bottom: 3px; border-radius: 4px; background: var(--comfy-input-bg) }
.dp-bar { position: absolute; top: 0; bottom: 0; border-radius: 4px; background: #e0408a; opacity: 0.75 }
.dp-grip { position: absolute; top: 0; bottom: 0; width: 10px; cursor: ew-resize }
.dp-grip::after { content: ''; position: absolute; top: 3px; bottom: 3px; width: 2px; background: #fff }
.dp-from { left: 0 }
.dp-from::after { left: 3px }
.dp-to { right: 0 }
.dp-to::after { right: 3px }
.dp-name { position: absolute; left: 10px; right: 10px; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; line-height: 18px; pointer-events: none; text-shadow: 0 0 3px var(--comfy-input-bg) }
`

app.registerExtension({
  name: 'DiffusionPath.Strip',
  setup() {
    document.head.append(make('style', '', { textContent: STYLE }))
  },
  nodeCreated(node) {
    if (node.comfyClass === 'DiffusionPath_PathPreview') {
      addDrawing(node, 'strip', 'where each edit works', read, draw)
    }
  }
})
