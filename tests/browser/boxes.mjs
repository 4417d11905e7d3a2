// Measures the nodes of workflow files in ComfyUI's own front end, in both renderers.
//
//   node boxes.mjs <server> <steps> <workflow.json>...
//
// Each workflow is opened, and then run with at most that many steps; 0 does not run it.
// Prints {renderer: {file: {"opened": boxes, "ran": boxes, "error": text}}} as JSON; boxes are
// {node id: [left, top, width, height]} with the title, in the units of the graph.
import { readFile } from 'node:fs/promises'
import { withFrontEnd } from './front_end.mjs'

const [url, steps, ...files] = process.argv.slice(2)
const FEW = { steps: Number(steps), maps: 1, inner_steps: 1 }

async function open(page, workflow) {
  await page.evaluate(async (workflow) => {
    delete workflow.extra.linearMode // the graph is measured, not the app
    await window.app.loadGraphData(workflow)
    const { ds } = window.app.canvas
    const x = window.app.graph.nodes.flatMap((node) => [node.pos[0], node.pos[0] + node.size[0]])
    const y = window.app.graph.nodes.flatMap((node) => [node.pos[1], node.pos[1] + node.size[1]])
    ds.scale = Math.min(0.9, 1500 / (Math.max(...x) - Math.min(...x) + 200), 900 / (Math.max(...y) - Math.min(...y) + 200))
    ds.offset = [100 - Math.min(...x), 150 - Math.min(...y)]
    window.app.canvas.setDirty(true, true)
  }, workflow)
}

// Presses Run; what went wrong, or null.
async function run(page, few) {
  return await page.evaluate(async (few) => {
    const { api, app } = { api: window.app.api, app: window.app }
    for (const node of [...app.graph.nodes, ...[...app.graph.subgraphs.values()].flatMap((graph) => graph.nodes)]) {
      for (const widget of node.widgets ?? []) {
        if (widget.name in few && widget.value > few[widget.name]) widget.value = few[widget.name]
        if (widget.name === 'steps' && widget.value === 0) widget.value = few.steps // the model's own
      }
    }
    return await new Promise((resolve) => {
      const ended = (event) => resolve(event.type === 'execution_success' ? null : JSON.stringify(event.detail))
      for (const type of ['execution_success', 'execution_error', 'execution_interrupted']) {
        api.addEventListener(type, ended, { once: true })
      }
      app.queuePrompt(0).then((queued) => queued || resolve('the server refused it'))
    })
  }, few)
}

// The boxes, once they stay the same.
async function measure(page, nodes2) {
  let last
  for (;;) {
    const boxes = await page.evaluate((nodes2) => {
      const title = window.LiteGraph.NODE_TITLE_HEIGHT
      const { nodes } = window.app.graph
      if (!nodes2) {
        const box = ({ pos, size }) => [pos[0], pos[1] - title, size[0], size[1] + title]
        return Object.fromEntries(nodes.map((node) => [node.id, box(node)]))
      }
      const { ds, canvas } = window.app.canvas
      const corner = canvas.getBoundingClientRect()
      return Object.fromEntries(
        nodes.map((node) => {
          const element = document.querySelector(`.lg-node[data-node-id="${node.id}"]`)
          const rect = element?.getBoundingClientRect()
          if (!rect) return [node.id, null]
          return [
            node.id,
            [
              (rect.left - corner.left) / ds.scale - ds.offset[0],
              (rect.top - corner.top) / ds.scale - ds.offset[1],
              rect.width / ds.scale,
              rect.height / ds.scale
            ]
          ]
        })
      )
    }, nodes2)
    const text = JSON.stringify(boxes)
    if (text === last) return boxes
    last = text
    await page.waitForTimeout(250)
  }
}

const result = await withFrontEnd(url, async (page) => {
  const measured = {}
  for (const renderer of ['classic', 'nodes2']) {
    const nodes2 = renderer === 'nodes2'
    await page.evaluate((on) => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on), nodes2)
    measured[renderer] = {}
    for (const file of files) {
      await open(page, JSON.parse(await readFile(file, 'utf8')))
      const found = (measured[renderer][file] = { opened: await measure(page, nodes2) })
      if (FEW.steps) {
        found.error = await run(page, FEW)
        found.ran = await measure(page, nodes2)
      }
      if (process.env.SHOTS) await page.screenshot({ path: `${process.env.SHOTS}/${renderer}-${file.split('/').pop()}.png` })
    }
  }
  return measured
})
console.log(JSON.stringify(result))
