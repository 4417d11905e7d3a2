// The pack's templates in the order of their numbers: ComfyUI lists files as the disk has them.
import { api } from '../../../scripts/api.js'

const folder = decodeURIComponent(new URL(import.meta.url).pathname.split('/').at(-3))
const listed = api.getWorkflowTemplates

api.getWorkflowTemplates = async function () {
  const templates = await listed.call(this)
  templates[folder]?.sort()
  return templates
}
