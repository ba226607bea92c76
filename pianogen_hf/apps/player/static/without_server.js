// What the page of `pianogen space --static` begins with.

import { BrowserSession } from "./browser_session.js";
import { openPage } from "./play.js";

openPage(new BrowserSession());
