"""The name under which configurations of earlier versions import our parts for mmagic."""
from sr_bigbatch.hosts.mmengine.mmagic import *  # noqa: F403
