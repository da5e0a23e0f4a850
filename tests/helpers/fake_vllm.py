"""In the place of vllm_worker.py: one to three tokens that follow from the prompt's last one, then the EOS.

`FAKE_DIES=n`: ends after n answers; `FAKE_SAYS=text`: cannot start, and says so.  It notes what it is asked
in the file `FAKE_NOTES`.
"""

import hashlib
import json
import os
import sys


def say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def note(value: object) -> None:
    with open(os.environ["FAKE_NOTES"], "a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


start = json.loads(sys.stdin.readline())
with open(f"{start['model']}/model.safetensors", "rb") as weights:
    note({**start, "weights": hashlib.sha256(weights.read()).hexdigest()})
if os.environ.get("FAKE_SAYS"):
    say({"error": os.environ["FAKE_SAYS"]})
    sys.exit(1)
say({"version": "0.0"})
# Tokens but the EOS, 0.
OTHERS = int(os.environ.get("FAKE_OTHERS", "200"))
left = int(os.environ.get("FAKE_DIES", "1000"))
for line in sys.stdin:
    order = json.loads(line)
    note(order)
    # In another order than asked.
    for number, tokens, seed in reversed(order["answer"]):
        if left == 0:
            sys.exit(3)
        left -= 1
        count = min(order["max_tokens"], 1 + seed % 3)
        said = [1 + (tokens[-1] + i) % OTHERS for i in range(count)]
        if count < order["max_tokens"]:
            said.append(order["eos"])
        say([number, said, count < order["max_tokens"]])
