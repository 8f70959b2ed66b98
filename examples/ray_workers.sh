#!/usr/bin/env bash
# Runs workers as actors of a Ray cluster, and adds and drains some while the server runs.
#
#     examples/ray_workers.sh                     starts a cluster on this machine, and ends it
#     examples/ray_workers.sh HEAD_IP:6379        joins a cluster that runs
#
# More machines join the cluster with `ray start --address HEAD_IP:6379`; all need the same Python,
# packages, RAY_AUTH_MODE and RAY_AUTH_TOKEN. MODEL, PORT, DATA_DIR and SIZE change what is served,
# where, and the size of the video; RAY_PORT the port of the cluster. A worker takes one GPU if the
# cluster has any; `@gpus=0.5` after its roles takes half of one.
set -euo pipefail

model=${MODEL:-nano}
port=${PORT:-8000}
data_dir=${DATA_DIR:-helios-data}
size=${SIZE:-64x64}
ray_port=${RAY_PORT:-6379}
address=${1:-}
started=() # processes, the last one first

stop() {
  for process in "${started[@]}"; do
    kill "$process" 2> /dev/null && wait "$process" || true
  done
}
trap stop EXIT

still_runs() { # what was started last; its output says why it ended
  kill -0 "${started[0]}" 2> /dev/null || exit 1
}

# 1. A cluster. Ray listens on all addresses of the machine, hence the token. With --block its
#    processes end with the command.
if [ -z "$address" ]; then
  address=127.0.0.1:$ray_port
  export RAY_AUTH_MODE=token
  export RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')}
  ray start --head --port "$ray_port" --num-cpus 8 --include-dashboard false --block \
    > ray.log 2>&1 &
  started=($!)
  until ray status --address "$address" > /dev/null 2>&1; do
    still_runs
    sleep 1
  done
fi

# 2. The server, with one worker for encoding and decoding and one for denoising.
helios-serve serve "$model" --port "$port" --data-dir "$data_dir" --ray-address "$address" \
  --workers 1:encode+decode --workers 1:denoise &
started=($! "${started[@]}")

workers() {
  helios-serve workers "$@" --data-dir "$data_dir"
}

wait_for() { # how many workers, in which state
  until [ "$(workers list 2> /dev/null | grep -c "$2")" -eq "$1" ]; do
    still_runs
    sleep 1
  done
}

wait_for 2 ready
workers list

# 3. One more worker. It starts wherever the cluster has room, and takes sessions when it is ready.
workers add 1:denoise
wait_for 3 ready
workers list

# 4. One worker less while a video is made: its sessions continue on another one after their current
#    chunk, and then it ends.
curl -sf "http://127.0.0.1:$port/v1/videos/sync" -F prompt="a red ball goes up on the sand" -F size="$size" \
  -F seconds=6 --output sea.mp4 &
video=$!
workers drain "$(workers list | awk '$4 == "denoise" { print $2; exit }')"
wait_for 0 draining
workers list
wait "$video"
echo sea.mp4
