// Opens the Templates dialog at the pack's category.
//
//   node templates.mjs <server> <category> <screenshot.png>
//
// Prints the names of the templates in the order in which the dialog has them, as JSON.
import { withFrontEnd } from './front_end.mjs'

const [url, category, screenshot] = process.argv.slice(2)

const names = await withFrontEnd(url, async (page) => {
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates'))
  await page.getByText(category).first().click()
  const cards = page.locator('[data-testid^="template-workflow-"]')
  await cards.first().waitFor()
  await page.waitForTimeout(2000) // let the thumbnails come
  await page.screenshot({ path: screenshot })
  return cards.evaluateAll((found) => found.map((card) => card.dataset.testid.slice('template-workflow-'.length)))
})
console.log(JSON.stringify(names))
