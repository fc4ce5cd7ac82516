"""Where the reference statistics that papers use are to be had, and what each is of."""

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
  """A reference file of a peer; it is fetched by hand, since its authors publish no sha256 to pin.

  Attributes:
    url: Where it lies.
    convention: What goes with it, a key of `CONVENTIONS`.
    about: What it is of.
  """

  url: str
  convention: str
  about: str


_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs"
_EDM2 = "https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs"
_ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches"

PUBLISHED: Mapping[str, Published] = {
  "cifar10-edm": Published(f"{_EDM}/cifar10-32x32.npz", "edm", "CIFAR-10, the 50,000 of train, unflipped"),
  "ffhq64-edm": Published(f"{_EDM}/ffhq-64x64.npz", "edm", "FFHQ at 64x64"),
  "afhqv2-64-edm": Published(f"{_EDM}/afhqv2-64x64.npz", "edm", "AFHQv2 at 64x64"),
  "imagenet64-edm": Published(f"{_EDM}/imagenet-64x64.npz", "edm", "ImageNet at 64x64, EDM's downsampling"),
  "imagenet64-edm2": Published(f"{_EDM2}/img64.pkl", "edm", "ImageNet at 64x64: fid and fd_dinov2"),
  "imagenet512-edm2": Published(f"{_EDM2}/img512.pkl", "edm", "ImageNet at 512x512: fid and fd_dinov2"),
  "imagenet64-adm": Published(
    f"{_ADM}/imagenet/64/VIRTUAL_imagenet64_labeled.npz", "adm", "ImageNet at 64x64, ADM's downsampling"
  ),
  "imagenet256-adm": Published(
    f"{_ADM}/imagenet/256/VIRTUAL_imagenet256_labeled.npz", "adm", "ImageNet at 256x256"
  ),
  "bedroom256-adm": Published(f"{_ADM}/lsun/bedroom/VIRTUAL_lsun_bedroom256.npz", "adm", "LSUN Bedroom"),
  "cat256-adm": Published(f"{_ADM}/lsun/cat/VIRTUAL_lsun_cat256.npz", "adm", "LSUN Cat"),
}
