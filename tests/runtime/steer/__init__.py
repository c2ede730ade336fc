"""SGLang's own DSPARK, steered and served."""
