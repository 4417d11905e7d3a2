// What the pack draws on its nodes: an element below a node's inputs that follows the workflow.
import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'

const MUTED = 2
const BYPASSED = 4
const MARGIN = 6
const drawings = new Set()
let asked = false

// Brings every drawing up to date before the next frame.
export function redraw() {
  if (asked) return
  asked = true
  requestAnimationFrame(() => {
    asked = false
    for (const update of drawings) update()
  })
}

// An element with a class, attributes and children.
export function make(tag, className, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), { className, ...attributes })
  element.append(...children)
  return element
}

// Draws on a node what `draw(node, state)` makes, again whenever `read(node)` has another state.
// The label is for apps, which can show the drawing as "$$name".
export function addDrawing(node, name, label, read, draw) {
  const content = make('div', 'dp-content')
  const element = make('div', `dp-drawing dp-${name}`, {}, content)
  let drawn
  const update = () => {
    if (element.querySelector('input:focus')) return // a slider in use stays where it is
    const state = JSON.stringify(read(node))
    if (state === drawn) return
    drawn = state
    content.replaceChildren(...draw(node, JSON.parse(state)))
    app.canvas.setDirty(true, true)
  }
  let wanted = 0
  new ResizeObserver(() => {
    if (!content.offsetHeight && content.childElementCount) return // out of sight: as it was
    wanted = content.offsetHeight
    app.canvas.setDirty(true, true)
  }).observe(content)
  const height = () => {
    const limit = parseInt(getComputedStyle(element).maxHeight) || Infinity
    return wanted && Math.min(wanted, limit) + 2 * MARGIN
  }
  const widget = node.addDOMWidget(`$$${name}`, 'diffusion_path', element, {
    serialize: false, // it has no value: the node's own inputs have
    margin: MARGIN,
    getMinHeight: height,
    getMaxHeight: height
  })
  widget.serialize = false
  widget.label = label
  element.addEventListener('wheel', passOn)
  after(node, 'onAdded', () => {
    drawings.add(update)
    redraw()
  })
  after(node, 'onRemoved', () => drawings.delete(update))
}

function after(node, name, then) {
  const before = node[name]
  node[name] = function (...args) {
    const result = before?.apply(this, args)
    then()
    return result
  }
}

// In the classic renderer an element lies over the canvas and would swallow its zoom.
function passOn(event) {
  const { scrollHeight, clientHeight } = event.currentTarget
  if (window.LiteGraph.vueNodesMode || scrollHeight > clientHeight) return
  event.preventDefault()
  app.canvas.processMouseWheel(event)
}

// The value of a node's input; undefined if it has none, or a wire brings it.
export function valueOf(node, name) {
  if (node.inputs?.find((input) => input.name === name)?.link != null) return undefined
  return node.widgets?.find((widget) => widget.name === name)?.value
}

export function setValue(node, name, value) {
  node.widgets.find((widget) => widget.name === name).value = value
  app.canvas.setDirty(true, true)
  redraw()
}

// The node that an input's wire comes from, past reroutes and nodes that are bypassed.
export function origin(node, name) {
  let slot = node.inputs?.findIndex((input) => input.name === name) ?? -1
  const type = node.inputs?.[slot]?.type
  let from = slot < 0 ? null : node.getInputNode(slot)
  while (from && (from.mode === BYPASSED || from.type === 'Reroute')) {
    slot = from.inputs?.findIndex((input) => [type, '*'].includes(input.type)) ?? -1
    from = slot < 0 ? null : from.getInputNode(slot)
  }
  return from && from.mode !== MUTED ? from : null
}

// What a node has told when it last ran; nothing after a change of page or before a run.
export function outputOf(node) {
  const { graph } = node
  return app.nodeOutputs?.[graph?.isRootGraph === false ? `${graph.id}:${node.id}` : node.id] ?? {}
}

export const pictureAddress = (image) => api.apiURL(`/view?${new URLSearchParams(image)}`)

const STYLE = `
.dp-drawing { overflow: hidden auto; font-size: 11px; line-height: 16px; color: var(--input-text) }
.dp-content { display: flex; flex-wrap: wrap; gap: 4px }
.dp-chip { padding: 0 5px; border-radius: 5px; background: var(--comfy-input-bg); color: inherit;
  border: 1px solid var(--border-color); font: inherit; white-space: nowrap }
button.dp-chip { cursor: pointer }
button.dp-chip:hover { border-color: currentColor }
`

app.registerExtension({
  name: 'DiffusionPath.Drawing',
  setup() {
    document.head.prepend(make('style', '', { textContent: STYLE }))
    document.addEventListener('input', redraw)
    document.addEventListener('focusout', redraw)
    api.addEventListener('graphChanged', redraw)
    api.addEventListener('executed', redraw)
    setInterval(redraw, 1000) // for values that change without an event, as by an undo
  },
  afterConfigureGraph: redraw,
  onNodeOutputsUpdated: redraw
})
