"""How good an edit or an editor is: fidelity to a known target, scores in the sandbox."""
