"""The tasks of RULER (https://arxiv.org/abs/2404.06654), generated to a length in tokens.

What each task asks, its needles and repeats are those of NVIDIA/RULER (Apache-2.0); the wording of
its prompts stands in conf/dataset/ruler.yaml.
"""
