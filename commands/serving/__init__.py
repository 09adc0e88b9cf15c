"""What `consilium serve` is made of: answers, the queue before the models, the web around them."""
