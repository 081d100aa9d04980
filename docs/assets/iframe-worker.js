/* A page that is opened from a disk may start no worker. The search's script then runs in a hidden frame, which takes
   and gives messages as a worker does. */
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inside = (this.inside = frame.contentWindow)
      inside.document.open()
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...urls) => Promise.all(urls.map(one => loaded(inside.document, one)))
      inside.document.write("<!doctype html><body></body>")
      inside.document.close()
      this.ready = loaded(inside.document, new URL(url, location.href).href)
    }
    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() {
      this.inside.frameElement.remove()
    }
  }
}

function loaded(page, url) {
  return new Promise((resolve, reject) => {
    const script = page.createElement("script")
    script.src = url
    script.onload = resolve
    script.onerror = reject
    page.body.append(script)
  })
}
