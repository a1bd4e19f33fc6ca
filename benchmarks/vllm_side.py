"""vLLM's side of `against_vllm.py`. It runs in a virtual environment of its own, so it imports nothing of this project.

Arguments: a model folder, and how many answers to draw at a time. Standard input has one job a line, as JSON:
{"prompts": token ids of each, "lengths": new tokens for each}. Standard output has one line when it is ready, and one
for every job: {"seconds": time of the call of `generate`, "tokens": what it drew}.
"""

import json
import os
import sys
import time

if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no reply
    import vllm

    engine = vllm.LLM(
        sys.argv[1], dtype="float32", max_model_len=1024, max_num_seqs=int(sys.argv[2]), skip_tokenizer_init=True
    )
    print(json.dumps({"version": vllm.__version__}), file=replies, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
        sampling = [
            vllm.SamplingParams(temperature=1.0, max_tokens=length, ignore_eos=True, detokenize=False)
            for length in job["lengths"]
        ]
        engine.reset_prefix_cache()  # prompts are shared within a job, not with the same job before
        started = time.perf_counter()
        drawn = engine.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - started
        tokens = sum(len(request.outputs[0].token_ids) for request in drawn)
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=replies, flush=True)
