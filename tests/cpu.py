"""Which CPU this is. The exact figures of a few tests were measured on one with AMX, whose float32 products are AVX-512's; on others rounding
is another (seen with unchanged code on AVX2, and on AVX-512 of another make), and those tests say what they hold there instead."""

import torch

IS_MEASURED = torch.cpu._is_amx_tile_supported()
