"""What engines and GPUs say about themselves while a run goes on: pages in, the `server` and `gpu` blocks out.

exposition → engines, gpus, ollama (a page to a `Reading`) → watch, processes (is it whole, and of one process?) →
window (readings to sums over a steady window) → server, gpu (sums to blocks) → join (into the summary). No socket, no
clock: cluster/poller.py brings pages and stamps.
"""
