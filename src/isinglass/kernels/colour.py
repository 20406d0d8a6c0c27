"""Colour."""

from torch import Tensor


def luminance(images_BCHW: Tensor) -> Tensor:
    """(B, 1, H, W) luminance by ITU-R BT.601 of RGB images; grey ones stay as they are."""
    if images_BCHW.shape[1] == 1:
        return images_BCHW
    return (images_BCHW * images_BCHW.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
