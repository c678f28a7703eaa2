"""How fast training and reading are, by part, each lever alone and all together."""
