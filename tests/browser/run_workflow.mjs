// Drops a workflow file on ComfyUI's canvas, presses Run and waits for the pictures.
//
//   node run_workflow.mjs <server> <workflow.json> <screenshot.png>
//
// Prints {"pictures": {node id: [address]}, "errors": [...]} as JSON.
import { readFile } from 'node:fs/promises'
import { basename } from 'node:path'
import { withFrontEnd } from './front_end.mjs'

const [url, file, screenshot] = process.argv.slice(2)
const TIMEOUT = 300_000

// What a file manager does: a drop event that carries the file, over the middle of the canvas.
async function dropFile(page, path) {
  const transfer = await page.evaluateHandle(
    ([name, text]) => {
      const transfer = new DataTransfer()
      transfer.items.add(new File([text], name, { type: 'application/json' }))
      return transfer
    },
    [basename(path), await readFile(path, 'utf8')]
  )
  const where = { clientX: 800, clientY: 500, dataTransfer: transfer }
  for (const type of ['dragenter', 'dragover', 'drop']) {
    await page.dispatchEvent('#graph-canvas', type, where)
  }
}

// The pictures shown in the nodes that end a workflow; null while one of them has none.
function shownPictures() {
  const ends = window.app.graph.nodes.filter((node) => /^(Save|Preview)Image/.test(node.type))
  const shown = ends.map((node) => [node.id, (node.imgs ?? []).filter((image) => image.complete)])
  if (!shown.length || shown.some(([, images]) => !images.length)) return null
  return Object.fromEntries(shown.map(([id, images]) => [id, images.map((image) => image.src)]))
}

const result = await withFrontEnd(url, async (page, errors) => {
  const { nodes } = JSON.parse(await readFile(file, 'utf8'))
  const complaints = page.locator('[role=dialog]:visible, [data-testid=error-overlay]:visible')
  await dropFile(page, file)
  await page.waitForFunction(
    (types) => window.app.graph.nodes.map((node) => node.type).sort().join() === types,
    nodes.map((node) => node.type).sort().join()
  )
  // What the console has told until now is about ComfyUI's own start, unless it names the pack.
  const ofThePack = (text) => text.includes('DiffusionPath') || text.startsWith('uncaught')
  errors.splice(0, Infinity, ...errors.filter(ofThePack))
  // The complaint about the models of ComfyUI's default workflow goes away by itself, ours stay.
  await complaints.first().waitFor({ state: 'hidden', timeout: 5000 }).catch(() => {})
  const reportComplaints = async () => {
    for (const text of await complaints.allInnerTexts()) errors.push(`shown to the user: ${text}`)
  }
  await reportComplaints()

  await page.getByTestId('queue-button').click()
  const pictures = await Promise.race([
    page.waitForFunction(shownPictures, null, { timeout: TIMEOUT }).then((found) => found.jsonValue()),
    complaints.first().waitFor({ timeout: TIMEOUT }).then(() => ({}))
  ])
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView'))
  await page.waitForTimeout(1500) // let the canvas be drawn
  await page.screenshot({ path: screenshot })
  await reportComplaints()
  return { pictures, errors }
})
console.log(JSON.stringify(result))
