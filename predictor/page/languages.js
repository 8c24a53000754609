// The languages of models, in their own script, and in English as the server writes them.

const LANGUAGES = {
  as: ["অসমীয়া", "Assamese"], bn: ["বাংলা", "Bengali"], brx: ["बड़ो", "Bodo"], doi: ["डोगरी", "Dogri"],
  en: ["English", "English"], gu: ["ગુજરાતી", "Gujarati"], hi: ["हिन्दी", "Hindi"], kn: ["ಕನ್ನಡ", "Kannada"],
  kok: ["कोंकणी", "Konkani"], ks: ["کٲشُر", "Kashmiri"], mai: ["मैथिली", "Maithili"], ml: ["മലയാളം", "Malayalam"],
  mni: ["ꯃꯩꯇꯩꯂꯣꯟ", "Manipuri"], mr: ["मराठी", "Marathi"], ne: ["नेपाली", "Nepali"], or: ["ଓଡ଼ିଆ", "Odia"],
  pa: ["ਪੰਜਾਬੀ", "Punjabi"], sa: ["संस्कृतम्", "Sanskrit"], sat: ["ᱥᱟᱱᱛᱟᱲᱤ", "Santali"], sd: ["سنڌي", "Sindhi"],
  ta: ["தமிழ்", "Tamil"], te: ["తెలుగు", "Telugu"], ur: ["اردو", "Urdu"], vi: ["Tiếng Việt", "Vietnamese"],
};

/** A code's name among those who speak it; the code itself where it is not known. */
export const nameOf = (code) => LANGUAGES[code]?.[0] ?? code;

/** The code of "vietnamese", as OpenAI's answers name languages, or of "vi"; null where there is none. */
export const codeOf = (name) =>
  Object.keys(LANGUAGES).find((code) => code === name || LANGUAGES[code][1].toLowerCase() === name) ?? null;

export function option(code) {
  const [own, english] = LANGUAGES[code] ?? [code, code];
  const element = new Option(own === english ? own : `${own} · ${english}`, code);
  element.lang = code;
  return element;
}
