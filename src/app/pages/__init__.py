"""HTML pages in one file each: the style and the plots that all of them share, and the page of a run."""
