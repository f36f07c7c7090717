"""Which CPU this is. The exact figures of a few tests were measured with AVX-512's float32 products; where there is none, rounding is
another (seen on an AVX2 machine with unchanged code), and those tests say what they hold there instead."""

import torch

IS_MEASURED = torch.cpu._is_avx512_supported()
