// Live parts of the WebUI's DreamBooth tab. The tab is coming; nothing runs here yet.
