"""How many layers and products of transformers are quantized, and which not?

    python benchmarks/transformers.py

Random weights; the backbones of mmcls and the networks of torchvision are
prepared, and nothing is learned. Prints one row for each.
"""

from __future__ import annotations

import argparse
import logging

import torch
import torchvision
from mmcls.models import build_backbone
from torch import nn

from mmrazor_brecq.algorithms import BRECQ

#: Backbones of mmcls, and the names of networks of torchvision.
CASES = {
    'DeiT-T': dict(type='VisionTransformer', arch='deit-tiny'),
    'Swin-T': dict(type='SwinTransformer', arch='tiny'),
    'MobileViT-XXS': dict(type='MobileViT', arch='xx_small'),
    'LeViT-128S': dict(type='LeViT', arch='128s'),
    'EdgeNeXt-XXS': dict(type='EdgeNeXt', arch='xxsmall'),
    'PoolFormer-S12': dict(type='PoolFormer', arch='s12'),
    'MViT-T': dict(type='MViT', arch='tiny'),
    'T2T-ViT': dict(type='T2T_ViT'),
    'Conformer-T': dict(type='Conformer', arch='tiny'),
    'ConvNeXt-T': dict(type='ConvNeXt', arch='tiny'),
    'ViT-B/16 (torchvision)': 'vit_b_16',
    'Swin-T (torchvision)': 'swin_t',
    'Swin-V2-T (torchvision)': 'swin_v2_t',
    'MaxViT-T (torchvision)': 'maxvit_t',
}


def network_of(case: dict | str) -> nn.Module:
    """Build a float network."""
    if isinstance(case, str):
        return torchvision.models.get_model(case, weights=None)
    return build_backbone(case)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', default=list(CASES))
    logging.disable(logging.WARNING)
    print('| network | layers | products of activations | in float |')
    print('| :-- | --: | --: | :-- |')
    for name in parser.parse_args().names:
        model = BRECQ(network_of(CASES[name]))
        model.prepare(torch.randn(1, 3, 224, 224))
        account = model.account
        kinds = {key.rpartition('.')[2] for key in account.products}
        left = ', '.join(f'`{kind}`' for kind in sorted(kinds)) or '-'
        print(
            f'| {name} | {len(account.quantized)} of {account.layers} | '
            f'{len(account.quantized_products)} of '
            f'{account.activation_products} | {left} |',
            flush=True,
        )


if __name__ == '__main__':
    main()
