/* The search of a site that is read from a disk: browsers start no worker there, so a hidden frame
   runs the worker's script. What goes in and out is copied, as between a worker and its page. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      inside.document.open();
      inside.document.write("<!doctype html><body></body>");
      inside.document.close();
      inside.postMessage = (data) => {
        const copy = structuredClone(data);
        setTimeout(() => this.dispatchEvent(new MessageEvent("message", { data: copy })));
      };
      this.loaded = new Promise((resolve) => {
        const script = inside.document.createElement("script");
        script.addEventListener("load", resolve);
        script.src = url;
        inside.document.body.append(script);
      });
    }

    postMessage(data) {
      const copy = structuredClone(data);
      const inside = this.frame.contentWindow;
      this.loaded.then(() =>
        inside.dispatchEvent(new inside.MessageEvent("message", { data: copy })),
      );
    }

    terminate() {
      this.frame.remove();
    }
  };
}
