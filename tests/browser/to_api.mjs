// Turns workflow files into API format by loading and exporting them in ComfyUI's own front end.
//
//   node to_api.mjs <server> <workflow.json>...
//
// Prints {file: API format} as JSON.
import { readFile } from 'node:fs/promises'
import { withFrontEnd } from './front_end.mjs'

const [url, ...files] = process.argv.slice(2)

const converted = await withFrontEnd(url, async (page) => {
  const result = {}
  for (const file of files) {
    result[file] = await page.evaluate(async (workflow) => {
      await window.app.loadGraphData(workflow)
      return (await window.app.graphToPrompt()).output
    }, JSON.parse(await readFile(file, 'utf8')))
  }
  return result
})
console.log(JSON.stringify(converted))
