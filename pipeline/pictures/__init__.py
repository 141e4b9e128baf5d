"""Pictures of results: thumbnails, contact sheets, timelines, heat maps, and reports that open without a network."""
