// Uses what the pack draws on its nodes (web/js), in one renderer, with a workflow in API format.
//
//   node drawings.mjs <server> <workflow.json> <classic|nodes2|without> <folder for screenshots>
//
// "without" is the classic renderer with the pack's JavaScript blocked. Prints what was seen as JSON.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { withFrontEnd } from './front_end.mjs'

const [url, file, renderer, folder] = process.argv.slice(2)
const vue = renderer === 'nodes2'

await fetch(`${url}/settings/Comfy.VueNodes.Enabled`, { method: 'POST', body: String(vue) })

async function open(page) {
  await page.evaluate(
    async (workflow) => {
      await window.app.loadApiJson(workflow, 'drawings')
      await window.app.extensionManager.workflow.activeWorkflow?.changeTracker.captureCanvasState()
    },
    JSON.parse(await readFile(file, 'utf8'))
  )
}

// Brings a node into the middle at full size, and takes a screenshot of it.
async function visit(page, type, picture) {
  await page.evaluate((type) => {
    const { app } = window
    const node = app.graph.nodes.find((node) => node.type === `DiffusionPath_${type}`)
    app.canvas.ds.scale = 1
    app.canvas.centerOnNode(node)
    app.canvas.deselectAll()
    app.canvas.setDirty(true, true)
  }, type)
  await page.waitForTimeout(1500) // let it be drawn, and nodes grow
  if (picture) await page.screenshot({ path: join(folder, `${renderer}-${picture}.png`) })
}

const exported = (page) => page.evaluate(async () => (await window.app.graphToPrompt()).output)
const texts = (page, selector) => page.locator(selector).allInnerTexts()

async function moveSlider(page, word, share) {
  const { x, y, width, height } = await page.locator('.dp-sliders').getByLabel(word).boundingBox()
  await page.mouse.move(x + width / 2, y + height / 2)
  await page.mouse.down()
  await page.mouse.move(x + share * width, y + height / 2, { steps: 4 })
  await page.mouse.up()
}

async function dragBar(page, name, end, fraction) {
  const row = page.locator('.dp-row', { hasText: name })
  const [bar, grip] = [await row.boundingBox(), await row.locator(`.dp-${end}`).boundingBox()]
  await page.mouse.move(grip.x + grip.width / 2, grip.y + grip.height / 2)
  await page.mouse.down()
  await page.mouse.move(bar.x + fraction * bar.width, bar.y + 40, { steps: 5 })
  await page.mouse.up()
}

async function run(page) {
  const ended = page.evaluate(
    () =>
      new Promise((resolve) => {
        const { api } = window.app
        api.addEventListener('execution_success', () => resolve(null))
        api.addEventListener('execution_error', ({ detail }) => resolve(detail.exception_message))
      })
  )
  await page.getByTestId('queue-button').click()
  return await ended
}

// The colours of the wire types: of links, of the classic renderer's slots, and of Nodes 2.0's.
function colours() {
  const { canvas } = window.app
  const style = getComputedStyle(document.documentElement)
  const types = ['DIFFUSION_PATH', 'DIFFUSION_PATH_EDITS', 'DIFFUSION_PATH_PROMPTS']
  return types.map((type) => [
    canvas.constructor.link_type_colors[type],
    canvas.default_connection_color_byType[type],
    style.getPropertyValue(`--color-datatype-${type}`).trim()
  ])
}

async function theme(page, name) {
  await page.evaluate((name) => window.app.extensionManager.setting.set('Comfy.ColorPalette', name), name)
  await page.waitForTimeout(500)
}

async function useDrawings(page) {
  const seen = { colours: await page.evaluate(colours) }
  await theme(page, 'light')
  seen.coloursInLight = await page.evaluate(colours)
  await theme(page, 'dark')

  await visit(page, 'PromptPair')
  const prompt = page.locator('textarea').nth(1)
  const was = await prompt.inputValue()
  await prompt.fill('a striped zebra on green')
  await page.waitForTimeout(300)
  seen.typed = [await texts(page, '.dp-old'), await texts(page, '.dp-pair .dp-new')]
  await prompt.fill(was)

  await visit(page, 'Reweight')
  await moveSlider(page, 'zebra', 0.75)
  await page.locator('.dp-sliders').getByRole('button', { name: 'green', exact: true }).click()
  seen.sliders = (await exported(page))['7'].inputs.words
  seen.numbers = await texts(page, '.dp-number')
  await visit(page, 'Reweight', 'sliders')

  await visit(page, 'PathPreview')
  seen.bars = await texts(page, '.dp-name')
  await page.evaluate(() => {
    const edit = window.app.graph.nodes.find((node) => node.type === 'DiffusionPath_MDPEpsilon')
    edit.widgets.find((widget) => widget.name === 'end').value = 0.9 // as an undo does, without an event
  })
  await page.locator('.dp-name', { hasText: 'Keep Layout 0.00–0.90' }).waitFor()
  await dragBar(page, 'Keep Layout', 'to', 0.25)
  await dragBar(page, ': layout', 'from', 0.5)
  seen.dragged = await exported(page)
  await visit(page, 'PathPreview', 'bars')

  seen.error = await run(page)
  await visit(page, 'PromptPair', 'pair')
  seen.told = [await texts(page, '.dp-old'), await texts(page, '.dp-pair .dp-new')]
  await visit(page, 'PathPreview', 'strip')
  seen.frames = await page.locator('.dp-frames img').evaluateAll((all) => all.map((one) => one.naturalWidth))

  await visit(page, 'AttentionMaps', 'maps')
  seen.words = await texts(page, '.dp-maps button')
  await page.locator('.dp-maps button', { hasText: 'horse' }).click()
  const map = page.locator('dialog.dp-large img')
  await page.waitForFunction(() => document.querySelector('dialog.dp-large img')?.naturalWidth)
  seen.large = [(await map.boundingBox()).width, await map.getAttribute('alt')]
  await page.screenshot({ path: join(folder, `${renderer}-large.png`) })
  await page.keyboard.press('Escape')
  await map.waitFor({ state: 'detached' })
  return seen
}

// What there is without the pack's JavaScript: the inputs, and the text that nodes show.
async function useText(page) {
  await page.evaluate(() => {
    const reweight = window.app.graph.nodes.find((node) => node.type === 'DiffusionPath_Reweight')
    reweight.widgets.find((widget) => widget.name === 'words').value = 'zebra: 2'
  })
  const error = await run(page)
  await visit(page, 'PromptPair', 'pair')
  const sentences = await page.evaluate(() =>
    Object.values(window.app.nodeOutputs).flatMap((output) => output.text ?? [])
  )
  return { error, sentences, drawings: await page.locator('.dp-drawing').count() }
}

const block = (page) => page.route(/\/extensions\/.*diffusion.*\/js\//i, (route) => route.abort())

const seen = await withFrontEnd(
  url,
  async (page, errors) => {
    await open(page)
    const seen = await (renderer === 'without' ? useText : useDrawings)(page)
    return { ...seen, uncaught: errors.filter((text) => text.startsWith('uncaught')) }
  },
  renderer === 'without' ? block : undefined
)
console.log(JSON.stringify(seen))
