"""A checkpoint of a family's exact shape with random weights, for measurements of memory and speed where no real
weights can be had.

    python scripts/bench/random_checkpoint.py mistral --tokenizer tokenizer.json --output models/random-mistral

Weights are drawn on the GPU where there is one: seconds for 7B, then 14 GB are written.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from app.families import all_families, get_family


def write_checkpoint(name: str, folder: Path, *, layers: int | None = None) -> int:
    """Writes config and weights of the family; returns the number of its parameters."""
    changed = {"num_hidden_layers": layers} if layers else {}
    config = AutoConfig.for_model(**{**get_family(name).config, **changed})
    torch.manual_seed(42)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=list(all_families()))
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json of the family")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--layers", type=int, help="fewer decoder layers than the family has")
    options = parser.parse_args()
    parameters = write_checkpoint(options.family, options.output, layers=options.layers)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(options.tokenizer), clean_up_tokenization_spaces=False)
    tokenizer.save_pretrained(options.output)
    print(f"{parameters:,} parameters in {options.output}")


if __name__ == "__main__":
    main()
