"""Train a timm model with CLARS or LARS on ImageNet, or on any other set of labelled images.

    accelerate launch recipes/imagenet_clars.py --config recipes/imagenet/resnet50_clars.yaml

Keys of the YAML file and flags have the same names, and flags win: --per_device_train_batch_size 256.
"""

import sys

from hf_clars.cli import train

if __name__ == "__main__":
    sys.exit(train())
