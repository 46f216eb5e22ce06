"""The backward pass of every operator, one module for each family. `lowering.training.rules` lists them."""
