"""From patches to vision tokens: DFM, connector, prompt."""
