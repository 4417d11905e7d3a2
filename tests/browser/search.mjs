// Asks the front end's own node search what it finds.
//
//   node search.mjs <server> <words>...
//
// Prints {words: [display names, best first]} as JSON.
import { withFrontEnd } from './front_end.mjs'

const [url, ...queries] = process.argv.slice(2)

const found = await withFrontEnd(url, async (page) => {
  const stores = await page.evaluateHandle(
    () => document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s
  )
  // How often people use a node counts in the order of what is found.
  await page.waitForFunction((stores) => stores.get('nodeFrequency')?.isLoaded, stores)
  return await stores.evaluate((stores, queries) => {
    const { nodeSearchService } = stores.get('nodeDef')
    const named = (query) => nodeSearchService.searchNode(query).map((node) => node.display_name)
    return Object.fromEntries(queries.map((query) => [query, named(query)]))
  }, queries)
})
console.log(JSON.stringify(found))
