"""Everything that lies on disk or comes from elsewhere: runs, weights, downloads, samples, pictures."""
