// The pack's error sentences, where people see them: in a toast, and on the node that refused.
import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { nodeOf, showText, textOf } from './reports.js'

const OURS = 'DiffusionPath_'
const LIFE = 20_000

// The nodes whose text is an error, until the next run.
const failed = new Set()

// `sentence` begins with the node's name: "Edit Picture (Diffusion Path Sampler): start is ...".
function show(id, sentence) {
  const [, summary, detail] = sentence.trim().match(/^(.*?): (.*)$/s) ?? [null, 'Diffusion Path', sentence]
  app.extensionManager.toast.add({ severity: 'error', summary, detail, life: LIFE })
  showText(id, detail)
  failed.add(nodeOf(id))
}

// What ComfyUI has refused before running; it says the same of each input that a check reads.
function showRefused(refused = {}) {
  for (const [id, { class_type, errors }] of Object.entries(refused)) {
    if (!class_type.startsWith(OURS)) continue
    const own = errors.filter((error) => error.type === 'custom_validation_failed')
    const sentences = own.map(({ details }) => details.slice(details.indexOf(' - ') + 3))
    for (const sentence of new Set(sentences)) show(id, sentence)
  }
}

function forget() {
  for (const node of failed) {
    const widget = node && textOf(node)
    if (widget) node.removeWidget(widget)
  }
  failed.clear()
}

app.registerExtension({
  name: 'DiffusionPath.Errors',
  setup() {
    api.addEventListener('execution_error', ({ detail }) => {
      if (detail.node_type.startsWith(OURS)) show(detail.node_id, detail.exception_message)
    })
    const queue = api.queuePrompt
    api.queuePrompt = async function (...given) {
      forget()
      try {
        const answer = await queue.apply(this, given)
        showRefused(answer.node_errors)
        return answer
      } catch (error) {
        showRefused(error.response?.node_errors)
        throw error
      }
    }
  }
})
