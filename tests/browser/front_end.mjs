// Opens ComfyUI's own front end in a headless Chromium.
import { execFileSync } from 'node:child_process'
import { chromium } from 'playwright-core'

const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync'
]

// The first Chromium on the PATH.
function findChromium() {
  const names = ['chromium', 'chromium-browser', 'google-chrome']
  return execFileSync('sh', ['-c', `command -v ${names.join(' || command -v ')}`], { encoding: 'utf8' }).trim()
}

// Opens the front end at `url` and hands its page to `use`; `errors` collects what goes wrong in it.
// `prepare` gets the page while it is still empty.
export async function withFrontEnd(url, use, prepare = async () => {}) {
  // A first visit opens the template browser over everything; this is not one.
  await fetch(`${url}/settings/Comfy.TutorialCompleted`, { method: 'POST', body: 'true' })
  const browser = await chromium.launch({ executablePath: findChromium(), args: FLAGS })
  try {
    const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } })
    page.setDefaultTimeout(120_000) // two busy cores are slow
    const errors = []
    page.on('pageerror', (error) => errors.push(`uncaught: ${error.message}`))
    page.on('console', (message) => {
      if (message.type() === 'error') errors.push(`${message.text()} (${message.location().url})`)
    })
    await prepare(page)
    await page.goto(url)
    await page.waitForFunction(
      () => window.app?.extensionManager?.spinner === false && !document.querySelector('.p-blockui-mask')
    )
    return await use(page, errors)
  } finally {
    await browser.close()
  }
}
