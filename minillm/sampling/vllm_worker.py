"""vLLM in a process and an environment of its own: requests and answers are JSON lines.

Run as a file by vllm_backend.py with the Python of vLLM's environment, which need not have this package: only
vLLM and the standard library are imported.

The first line says how to start: {"model": folder, "dtype", "length": most tokens of prompt and response,
"memory": share of a GPU}; the answer is {"version"}.  Each further line is an order: {"answer": [[number,
token ids, seed], ...], "eos", "temperature", "top_k", "top_p", "max_tokens"}, answered by a line [number,
token ids, finished] for each request, in any order.  A problem is {"error": what vLLM says}.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO


def engine(start: dict[str, Any]) -> Any:
    """vLLM's engine with the weights in `start["model"]`, without a tokenizer."""
    # In this process, which is vLLM's own already.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import vllm
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    # vLLM cannot go on with a CPU's random numbers after a prompt that it has read in part.
    own = {"enable_chunked_prefill": False} if on_cpu else {"gpu_memory_utilization": start["memory"]}
    return vllm.LLM(
        model=start["model"],
        skip_tokenizer_init=True,
        # Nothing but what the requests say: neither another EOS nor other sampling.
        generation_config="vllm",
        dtype=start["dtype"],
        seed=0,
        max_model_len=start["length"],
        # Compiling for a CPU takes longer than it saves.
        enforce_eager=on_cpu,
        **own,
    )


def answer(llm: Any, order: dict[str, Any], out: TextIO) -> None:
    """Write an answer to each request of `order` as soon as it is there."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    # What top_k 1 means: all others are left out.
    greedy = order["top_k"] == 1
    prompts = llm.llm_engine.renderer.render_cmpl(
        [{"prompt_token_ids": tokens} for _, tokens, _ in order["answer"]]
    )
    for (number, _, seed), prompt in zip(order["answer"], prompts, strict=True):
        params = SamplingParams(
            temperature=0.0 if greedy else order["temperature"],
            top_k=0 if greedy else order["top_k"],
            top_p=1.0 if greedy else order["top_p"],
            max_tokens=order["max_tokens"],
            seed=None if greedy else seed,
            ignore_eos=True,
            stop_token_ids=[order["eos"]],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        llm.llm_engine.add_request(str(number), prompt, params)
    while llm.llm_engine.has_unfinished_requests():
        for result in llm.llm_engine.step():
            if result.finished:
                first = result.outputs[0]
                write(out, [int(result.request_id), list(first.token_ids), first.finish_reason == "stop"])


def write(out: TextIO, value: object) -> None:
    """One line, sent at once."""
    out.write(json.dumps(value) + "\n")
    out.flush()


def main() -> None:
    """Serve the process at the other end of stdin and stdout until it closes them."""
    # What libraries print goes with their messages.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        llm = engine(json.loads(sys.stdin.readline()))
        import vllm

        write(out, {"version": vllm.__version__})
        for line in sys.stdin:
            answer(llm, json.loads(line), out)
    except BrokenPipeError:
        # The other process has ended.
        os._exit(1)
    except Exception as error:
        # Whatever vLLM makes of a model, a setting or its own installation.
        write(out, {"error": " ".join(f"{type(error).__name__}: {error}".split())})
        sys.exit(1)


if __name__ == "__main__":
    main()
