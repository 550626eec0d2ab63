"""OpenVINO GenAI: ContinuousBatchingPipeline, in process."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

from contract import IN_PROCESS, Environment, Peer, Refused, environ, packages
from driving import Came, Generate, main


def _install(environment: Environment, device: str) -> None:
    packages(environment, "torch", "openvino")


def _convert(environment: Environment, checkpoint: Path) -> Path:
    made = checkpoint.with_name(checkpoint.name + "-openvino")
    if not (made / "openvino_model.bin").exists():
        command = [environment.folder / "bin" / "optimum-cli", "export", "openvino"]
        command += ["--model", checkpoint, "--task", "text-generation-with-past"]
        command += ["--weight-format", "fp16", made]
        done = subprocess.run(command, env=environ(), capture_output=True, text=True)
        if done.returncode:
            raise Refused(f"the export to OpenVINO failed:\n{done.stderr[-2000:]}")
    return made


PEER = Peer(
    name="openvino",
    distribution="openvino-genai",
    devices=("cpu",),
    over=IN_PROCESS,
    install=_install,
    convert=_convert,
    command=lambda launch: launch.driver("peer_openvino.py"),
    by_prefix=True,
)


def load(options: SimpleNamespace) -> Generate:
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = options.prefix_caching
    scheduler.max_num_seqs = options.max_streams
    scheduler.max_num_batched_tokens = 2048
    scheduler.cache_size = options.kv_gib
    hints = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "KV_CACHE_PRECISION": "bf16",
        "INFERENCE_NUM_THREADS": options.threads,
    }
    pipeline = genai.ContinuousBatchingPipeline(options.model, scheduler, "CPU", hints)

    def generate(prompts: list[list[int]], output_len: int, came: Came) -> None:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = output_len, True, False
        handles = [
            pipeline.add_request(i, ov.Tensor(np.array([ids], dtype=np.int64)), config)
            for i, ids in enumerate(prompts)
        ]
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for i, handle in enumerate(handles):
                while handle.can_read():
                    for made in handle.read().values():
                        for _ in made.generated_ids:
                            came(i)

    return generate


if __name__ == "__main__":
    main(load)
