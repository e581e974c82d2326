"""What stands in the place of the image where a picture is made on the page itself."""
