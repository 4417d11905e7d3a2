// Makes a node refuse something before running and another fail, and then runs and reloads, in one
// renderer, with a workflow in API format.
//
//   node errors.mjs <server> <workflow.json> <classic|nodes2> <folder for screenshots>
//
// Prints what the user saw as JSON: toasts, and the text on nodes.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { withFrontEnd } from './front_end.mjs'

const [url, file, renderer, folder] = process.argv.slice(2)

await fetch(`${url}/settings/Comfy.VueNodes.Enabled`, { method: 'POST', body: String(renderer === 'nodes2') })
await fetch(`${url}/settings/Comfy.Workflow.Persist`, { method: 'POST', body: 'true' })
const workflow = JSON.parse(await readFile(file, 'utf8'))

const open = (page, changes) =>
  page.evaluate(
    async ([workflow, changes]) => {
      for (const [id, inputs] of Object.entries(changes)) Object.assign(workflow[id].inputs, inputs)
      await window.app.loadApiJson(workflow, 'errors')
      await window.app.extensionManager.workflow.activeWorkflow?.changeTracker.captureCanvasState()
    },
    [workflow, changes]
  )

// What stands on a node of ours, as it is drawn in the page, and in toasts.
async function seen(page, type, words) {
  await page.evaluate((type) => {
    const { app } = window
    const node = app.graph.nodes.find((node) => node.type === `DiffusionPath_${type}`)
    app.canvas.ds.scale = 1
    app.canvas.centerOnNode(node)
    app.canvas.setDirty(true, true)
  }, type)
  await page.waitForTimeout(1500) // let it be drawn
  const onNodes = await page.evaluate((words) => {
    const ofToast = (element) => element.closest('.p-toast, [data-testid=error-overlay]')
    const shown = [...document.querySelectorAll('p, span, div')].filter(
      (element) => !element.children.length && element.textContent.includes(words) && !ofToast(element)
    )
    return shown.filter((element) => element.checkVisibility()).map((element) => element.textContent)
  }, words)
  return { toasts: await page.locator('.p-toast-message').allInnerTexts(), onNodes }
}

async function run(page) {
  const ended = page.evaluate(
    () =>
      new Promise((resolve) => {
        const { api } = window.comfyAPI.api
        for (const event of ['execution_error', 'execution_success']) {
          api.addEventListener(event, () => resolve(event), { once: true })
        }
      })
  )
  await page.getByTestId('queue-button').click()
  return ended
}

const result = await withFrontEnd(url, async (page, errors) => {
  const told = {}
  await open(page, { 8: { start: 0.7, end: 0.2 } })
  errors.splice(0)
  await page.getByTestId('queue-button').click()
  await page.locator('.p-toast-message').first().waitFor()
  told.refused = await seen(page, 'MDPEpsilon', 'is not before')
  await page.screenshot({ path: join(folder, `error-refused-${renderer}.png`) })

  await open(page, { 8: { start: 0, end: 0.5 }, 9: { positive: ['12', 0] } })
  await page.evaluate(() => window.app.extensionManager.toast.removeAll())
  told.ended = [await run(page)]
  await page.locator('.p-toast-message').first().waitFor()
  told.failed = await seen(page, 'Sampler', 'is not the target prompt')
  await page.screenshot({ path: join(folder, `error-failed-${renderer}.png`) })

  await page.evaluate(() => window.app.extensionManager.toast.removeAll())
  await page.evaluate(() => {
    const { graph } = window.app
    const [pair, sampler] = ['PromptPair', 'Sampler'].map((name) =>
      graph.nodes.find((node) => node.type === `DiffusionPath_${name}`)
    )
    pair.connect(1, sampler, 'positive')
  })
  told.ended.push(await run(page))
  told.left = await seen(page, 'Sampler', 'is not the target prompt')
  told.done = await seen(page, 'Sampler', 'model calls')
  await page.screenshot({ path: join(folder, `report-${renderer}.png`) })

  await page.waitForTimeout(3000) // the front end keeps a draft of the workflow a moment later
  await page.reload()
  await page.waitForFunction(() => window.app?.graph?.nodes.some((node) => node.type === 'DiffusionPath_Sampler'))
  await page.waitForTimeout(3000)
  told.reloaded = await seen(page, 'Sampler', 'model calls')
  await page.screenshot({ path: join(folder, `report-reloaded-${renderer}.png`) })
  told.errors = errors.filter((text) => text.startsWith('uncaught'))
  return told
})
console.log(JSON.stringify(result))
