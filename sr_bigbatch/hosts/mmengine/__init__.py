"""Everything that mmengine and mmagic see."""
