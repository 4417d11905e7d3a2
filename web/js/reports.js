// What the pack's nodes have said stays on them: after a reload, and where ComfyUI's cache answers.
import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'

const OURS = 'DiffusionPath_'
const RUNS = 20

// What the nodes of this workflow said in their last runs, as [id, output], the newest last.
async function lastOutputs() {
  const answer = await api.fetchApi(`/history?max_items=${RUNS}`)
  const runs = Object.values(await answer.json())
  const here = runs.filter(({ prompt }) => prompt[3].extra_pnginfo?.workflow?.id === app.rootGraph.id)
  return here.flatMap(({ prompt, outputs }) =>
    Object.entries(outputs).filter(([id]) => prompt[2][id]?.class_type.startsWith(OURS))
  )
}

let isRestored = false

app.registerExtension({
  name: 'DiffusionPath.Reports',
  setup() {
    api.addEventListener('executed', ({ detail: { display_node, node, output } }) => {
      const nodeId = String(display_node ?? node)
      const shown = app.canvas.graph?.getNodeById(nodeId.split(':').at(-1))
      if (shown?.type.startsWith(OURS) && output?.text) {
        api.dispatchCustomEvent('progress_text', { nodeId, text: output.text[0].replaceAll('\n', '  \n') })
      }
    })
  },
  // The first graph is the one of before the reload.
  async afterConfigureGraph() {
    if (isRestored) return
    isRestored = true
    for (const [node, output] of await lastOutputs()) api.dispatchCustomEvent('executed', { node, output })
  }
})
