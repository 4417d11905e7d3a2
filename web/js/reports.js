// What the pack's nodes say is whole, and stays: after a reload, and where ComfyUI's cache answers.
import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'

const OURS = 'DiffusionPath_'
const TEXT = '$$node-text-preview' // the widget in which the front end shows a node's text
const RUNS = 20
const [LETTER, LINE, SIDES, ENDS] = [6.2, 16, 52, 34] // of that text, in pixels

// The node of ours with an execution id, "3", or "12:3" inside a subgraph, if it can be seen.
export function nodeOf(id) {
  const node = app.canvas.graph?.getNodeById(String(id).split(':').at(-1))
  return node?.type.startsWith(OURS) ? node : null
}

// The widget with a node's text, if it has one.
export const textOf = (node) => node.widgets?.find(({ name }) => name === TEXT)

// Shows a text on a node, as the server can; the classic renderer's widget gets room for all of it.
export function showText(id, text) {
  // Nodes 2.0 reads Markdown: two spaces before the end of a line keep it.
  api.dispatchCustomEvent('progress_text', { nodeId: String(id), text: text.replaceAll('\n', '  \n') })
  const node = nodeOf(id)
  const widget = node && textOf(node)
  if (!widget) return
  const letters = Math.max(1, Math.floor((node.size[0] - SIDES) / LETTER))
  const lines = text.split('\n').map((line) => Math.ceil(line.length / letters))
  widget.options.getMinHeight = () => LINE * lines.reduce((sum, one) => sum + one) + ENDS
}

// Whether a run was of this workflow: the same nodes under the same numbers.
function isHere({ prompt }) {
  const nodes = Object.entries(prompt[2]).filter(([id]) => !id.includes(':'))
  return nodes.every(([id, { class_type }]) => app.rootGraph.getNodeById(id)?.type === class_type)
}

// What the nodes of this workflow said in their last runs, as [id, output], the newest last.
async function lastOutputs() {
  const answer = await api.fetchApi(`/history?max_items=${RUNS}`)
  const runs = Object.values(await answer.json()).filter(isHere)
  return runs.flatMap(({ prompt, outputs }) =>
    Object.entries(outputs).filter(([id]) => prompt[2][id]?.class_type.startsWith(OURS))
  )
}

let isRestored = false

app.registerExtension({
  name: 'DiffusionPath.Reports',
  setup() {
    const style = '.dom-widget .break-all { word-break: normal; overflow-wrap: anywhere }' // whole words
    document.head.append(Object.assign(document.createElement('style'), { textContent: style }))
    api.addEventListener('executed', ({ detail: { display_node, node, output } }) => {
      const id = display_node ?? node
      if (output?.text && nodeOf(id)) showText(id, output.text[0])
    })
  },
  // The first graph is the one of before the reload.
  async afterConfigureGraph() {
    if (isRestored) return
    isRestored = true
    for (const [node, output] of await lastOutputs()) api.dispatchCustomEvent('executed', { node, output })
  }
})
