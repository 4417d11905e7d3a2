// Finds a blueprint by typing into the node search, places it, wires it and presses Run.
//
//   node blueprint.mjs <server> <true for Nodes 2.0|false> <words to search> <screenshot.png>
//
// Prints {"title", "nodes", "wires", "outputs": the history's, "errors"} as JSON.
import { withFrontEnd } from './front_end.mjs'

const [url, vue, words, screenshot] = process.argv.slice(2)
const TIMEOUT = 300_000

await fetch(`${url}/settings/Comfy.VueNodes.Enabled`, { method: 'POST', body: vue })

const runs = async () => Object.values(await (await fetch(`${url}/history`)).json())

// Double-click on the empty canvas, type, Enter, and a click where the node shall be.
async function place(page, words, x, y) {
  await page.mouse.dblclick(x, y)
  const box = page.getByRole('combobox').or(page.getByPlaceholder(/search/i)).last()
  await box.fill(words)
  await page.locator('#result-item-0').waitFor()
  await page.keyboard.press('Enter')
  // The node follows the mouse until it is put down.
  const carried = (is) => window.app.graph.nodes.length === 1 && (window.app.canvas.state.ghostNodeId !== null) === is
  await page.waitForFunction(carried, true)
  await box.waitFor({ state: 'hidden' })
  await page.mouse.move(x + 50, y, { steps: 5 })
  await page.mouse.click(x + 50, y)
  await page.waitForFunction(carried, false)
}

// The other three nodes, all six wires and both prompts.
function wire() {
  const { app, LiteGraph } = window
  const add = (type, x, y) => {
    const node = LiteGraph.createNode(type)
    node.pos = [x, y]
    app.graph.add(node)
    return node
  }
  const [edit] = app.graph.nodes
  edit.pos = [450, 100]
  const model = add('DiffusionPath_DemoModel', 0, 100)
  const picture = add('DiffusionPath_ExamplePicture', 0, 350)
  picture.widgets.find((widget) => widget.name === 'picture').value = 'horse'
  const compare = add('ImageCompare', 950, 100)
  const input = (node, name) => node.inputs.findIndex((slot) => slot.name === name)
  for (const [slot, name] of ['model', 'clip', 'vae'].entries()) model.connect(slot, edit, input(edit, name))
  picture.connect(0, edit, input(edit, 'picture'))
  picture.connect(0, compare, input(compare, 'image_a'))
  edit.connect(0, compare, input(compare, 'image_b'))
  const write = (name, text) => (edit.widgets.find((widget) => widget.name === name).value = text)
  write('shows', 'a horse on a green background')
  write('should_show', 'a zebra on a green background')
  app.canvas.deselectAll()
}

const seen = await withFrontEnd(url, async (page, errors) => {
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.NewBlankWorkflow'))
  await page.waitForFunction(() => window.app.graph.nodes.length === 0)
  errors.length = 0
  await place(page, words, 900, 500)
  await page.evaluate(wire)
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView'))
  const before = (await runs()).length
  await page.getByTestId('queue-button').click()
  const end = Date.now() + TIMEOUT
  while ((await runs()).length === before) {
    if (Date.now() > end) throw new Error('the run did not end')
    await page.waitForTimeout(500)
  }
  await page.waitForTimeout(2000) // let the pictures be drawn
  await page.screenshot({ path: screenshot })
  const { title, count, wires } = await page.evaluate(() => ({
    title: window.app.graph.nodes[0].title,
    count: window.app.graph.nodes.length,
    wires: window.app.graph.links.size
  }))
  return { title, nodes: count, wires, outputs: (await runs()).at(-1).outputs, errors }
})
console.log(JSON.stringify(seen))
