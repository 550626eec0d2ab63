"""transformers: `generate` over one padded batch, in process."""

from __future__ import annotations

from types import SimpleNamespace

from contract import IN_PROCESS, Environment, Peer, packages
from driving import Came, Generate, main


def _install(environment: Environment, device: str) -> None:
    packages(environment, "torch", "transformers")


PEER = Peer(
    name="transformers",
    distribution="transformers",
    devices=("cpu", "cuda"),
    over=IN_PROCESS,
    install=_install,
    command=lambda launch: launch.driver("peer_transformers.py"),
)


def load(options: SimpleNamespace) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.generation.stopping_criteria import StoppingCriteria

    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16)
    model = model.eval().to(options.device)

    class Told(StoppingCriteria):
        """Never stops; is called after each step with all rows."""

        def __init__(self, came: Came) -> None:
            self.came = came

        def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            for row in range(len(input_ids)):
                self.came(row)
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def generate(prompts: list[list[int]], output_len: int, came: Came) -> None:
        config = GenerationConfig(
            max_new_tokens=output_len, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        model.generation_config = config  # an end of its own would end answers early
        ids = torch.tensor(prompts, device=options.device)
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                stopping_criteria=[Told(came)],
            )

    return generate


if __name__ == "__main__":
    main(load)
