#!/usr/bin/env bash
# Stops what `up.sh STATE_DIR` started, by the process numbers that it left there.
state=${1:?the folder of its state}
for file in slurmd.node1 slurmd.node2 slurmctld munged; do
  [ -s "$state/$file.pid" ] && kill "$(cat "$state/$file.pid")" 2> /dev/null
done
exit 0
