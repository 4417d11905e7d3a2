// Opens the first template as an app, runs it, changes its picture and its prompts, and runs it again.
//
//   node app.mjs <server> <address below the server> <folder for screenshots>
//
// Prints {"labels": [...], "pictures": [address, address], "toGraph": node count} as JSON.
import { join } from 'node:path'
import { withFrontEnd } from './front_end.mjs'

const [url, address, folder] = process.argv.slice(2)
const TIMEOUT = 300_000

const result = await withFrontEnd(url, async (page) => {
  await page.goto(url + address)
  const label = page.getByTestId('builder-widget-label')
  const input = (name) =>
    page.getByTestId('app-mode-widget-item').filter({ has: label.getByText(name, { exact: true }) })
  const picture = page.locator('img[src*="edit_a_picture_"]:visible')

  // Presses Run; the address of the picture that is then shown and was not before.
  const run = async (name, before) => {
    await page.getByRole('button', { name: 'Run', exact: true }).last().click()
    const shown = await page.waitForFunction(
      (before) =>
        [...document.querySelectorAll('img[src*="edit_a_picture_"]')].find(
          (image) => image.complete && image.clientWidth > 300 && image.src !== before
        )?.src,
      before,
      { timeout: TIMEOUT }
    )
    await page.screenshot({ path: join(folder, `app-${name}.png`) })
    return shown.jsonValue()
  }

  await input('What it shall show').waitFor()
  const labels = await label.allInnerTexts()
  const first = await run('first', null)

  await input('Example picture').getByRole('combobox').click()
  await page.getByRole('option', { name: 'red heart', exact: true }).click()
  await input('What it shows now').locator('textarea').fill('a red heart on a gray background')
  await input('What it shall show').locator('textarea').fill('a blue heart on a gray background')
  const second = await run('changed', first)

  // The graph is one click away.
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.ToggleLinear'))
  await page.locator('#graph-canvas').waitFor()
  return { labels, pictures: [first, second], nodes: await page.evaluate(() => window.app.graph.nodes.length) }
})
console.log(JSON.stringify(result))
