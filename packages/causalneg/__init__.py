"""CausalNeg: dense retrieval with hard negatives made by counterfactual perturbation."""
