// A colour of its own for each of the pack's three wire types.
import { app } from '../../../scripts/app.js'

const COLOURS = {
  DIFFUSION_PATH: '#1fb5a8',
  DIFFUSION_PATH_EDITS: '#e0408a',
  DIFFUSION_PATH_PROMPTS: '#a8c83c'
}

// Gives a type its colour. A theme has none for it and writes '': then ours stays.
function colour(types, type, ours) {
  let chosen = types[type]
  Object.defineProperty(types, type, {
    get: () => chosen || ours,
    set: (value) => (chosen = value),
    enumerable: true,
    configurable: true
  })
}

// Nodes 2.0 draws slots with these; themes set them on the root element, which wins over a sheet.
function styleSheet() {
  const lines = Object.entries(COLOURS).map(([type, ours]) => `--color-datatype-${type}: ${ours};`)
  return Object.assign(document.createElement('style'), { textContent: `:root { ${lines.join(' ')} }` })
}

app.registerExtension({
  name: 'DiffusionPath.Colours',
  setup() {
    for (const [type, ours] of Object.entries(COLOURS)) {
      colour(app.canvas.constructor.link_type_colors, type, ours)
      colour(app.canvas.default_connection_color_byType, type, ours)
    }
    document.head.append(styleSheet())
  }
})
