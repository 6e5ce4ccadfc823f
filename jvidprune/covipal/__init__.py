"""CoViPAL (reconstruction, arXiv 2508.17243): a module beside a frozen model that says which tokens matter.

The module reads visual and text tokens (`module.PPM`); `CoViPAL` drops by it before the language model or before one of
its first layers, `rules` holds that cut and the soft one that the module learns by, and
`jvidprune train covipal` (`jvidprune.training.pruners`) trains it.
"""

from jvidprune.covipal.module import PPM, module_of, module_weights
from jvidprune.covipal.reducer import CoViPAL
from jvidprune.covipal.rules import ModuleTopK, SoftTopK, soft_top_k
