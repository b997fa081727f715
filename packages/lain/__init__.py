"""LAIN: a length-adaptive interest network for click-through prediction, on any backbone."""
