// A thread that says again and again that time goes by: pages in the background have slow timers, threads have not.

self.onmessage = ({ data }) => setInterval(() => postMessage(null), data);
