// An upload button on Picture (Example or Yours): ComfyUI itself gives one to required inputs only.
import { app } from '../../../scripts/app.js'

app.registerExtension({
  name: 'DiffusionPath.Upload',
  beforeRegisterNodeDef(nodeType, { name, input }) {
    if (name !== 'DiffusionPath_ExamplePicture') return
    input.optional.upload = ['IMAGEUPLOAD', { ...input.optional.photo[1], imageInputName: 'photo' }]
  }
})
